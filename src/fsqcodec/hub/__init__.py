"""Model cards and upload: from a model's folder to a repository on the Hub."""
