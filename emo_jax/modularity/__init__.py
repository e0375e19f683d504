"""What the modules are for: choosing, and later pruning and composing, experts."""
