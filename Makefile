# Both as root, at any time, any number of times. What they do stands in scripts/up and scripts/test.

.PHONY: up test

up:
	@scripts/up

test:
	@scripts/test $(ARGS)
