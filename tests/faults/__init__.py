"""What goes wrong between the server and what it stands on, made to happen on purpose."""
