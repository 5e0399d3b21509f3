"""What a command of both programs is made of: its options, where they come from, what it prints."""
