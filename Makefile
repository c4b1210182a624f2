# Run these as root. They can be repeated at any time. scripts/up, scripts/test and scripts/quick have the steps.

.PHONY: up test quick

up:
	@scripts/up

test:
	@scripts/test $(ARGS)

quick:
	@scripts/quick $(ARGS)
