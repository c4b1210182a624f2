"""The operations of PassthroughFs, by what they act on; filesystem.py puts them together."""
