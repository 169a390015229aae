"""Methods that train and remove whole channels."""
