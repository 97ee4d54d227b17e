//! An image recipe.
