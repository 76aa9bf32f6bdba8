//! optimizer ops at the door: shapes checked, then `ops`.
