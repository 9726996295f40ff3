"""What people and programs see over HTTP: the worklist page, the API, events, KServe v2, metrics and health."""
