"""What tests share: small projects, detectors, reference cases, processes."""
