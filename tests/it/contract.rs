//! What every backend must do, asked through `Client` alone.
