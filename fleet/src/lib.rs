//! Control plane: registry, schedules, power, dashboard.
