"""A ticket as a product: programs that run it fast, what they cost, and files that leave Python."""
