//! What manages a fleet: it enrols machines, hears them, judges what it hears, and answers people.
