"""One step after another: hold, measure, attribute, convert, post."""
