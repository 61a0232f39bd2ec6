"""Ground floor: errors, files, discovery, progress, devices and processes. Imports no other room."""
