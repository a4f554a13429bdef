"""What a question is, and how its answer is graded."""
