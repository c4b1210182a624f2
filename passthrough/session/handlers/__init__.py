"""What the kernel session does with each request, in groups as the operations have them."""
