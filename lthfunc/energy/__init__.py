"""What trainings and inference cost: energy, emissions, time; and from when on a ticket pays back."""
