"""From a request to a job on disk: read it, check it, keep its files, look at its media, submit it."""
