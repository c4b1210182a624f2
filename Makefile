# Run both as root. Both can be repeated at any time. scripts/up and scripts/test have the steps.

.PHONY: up test

up:
	@scripts/up

test:
	@scripts/test $(ARGS)
