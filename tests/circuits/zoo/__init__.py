"""The fault zoo: models and traffic to which something happened, by the product's own path, beside what should be said of them."""
