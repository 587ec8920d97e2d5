"""What an edited model still knows: teacher-forced metrics, hidden states, and general capability."""
