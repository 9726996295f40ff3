"""What comes in: C-STORE, STOW-RS, zips, a watched folder. All of it may be broken or hostile."""
