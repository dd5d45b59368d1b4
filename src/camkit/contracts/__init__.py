"""What plugins promise, and what they are given."""
