"""What a worklist is worth to a reading room: arrivals, reading times, two orders of the same studies, differences."""
