"""Floor 3: from prompts to pictures."""
