"""What answers a scanner or PACS: the serving tower, which never imports torch, DALI or training code."""
