"""What speaks FUSE with the kernel and calls PassthroughFs: one module per way of doing so."""
