"""The console scripts and process entry points: words in, a request, an exit status out."""
