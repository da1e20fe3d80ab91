"""The endpoints, one router per family."""
