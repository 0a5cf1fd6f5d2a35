"""What people and machines see of a run: JSON logs and the record of every step."""
