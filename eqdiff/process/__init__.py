"""What a process owes its user and its shell: streams, interrupts, a launcher."""
