"""Models of other toolkits: read from their folders, and written as they read them."""
