"""What a caller may ask, transport or not: authorised, then handed to the features."""
