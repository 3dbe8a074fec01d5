"""What every other package stands on: errors, time, names, units, events, records. No I/O, no domain."""
