"""What happens to a job's clips, from the opened group to the records."""
