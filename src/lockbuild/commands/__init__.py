"""The console scripts and process entry points: each turns words into a request and a result into an exit status."""
