"""What a user could pick instead of our operators, one file an operator."""
