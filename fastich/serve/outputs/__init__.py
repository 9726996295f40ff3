"""What leaves the server: structured reports, key images, webhooks, and the thread that delivers each exactly once."""
