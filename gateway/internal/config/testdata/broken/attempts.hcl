driver "native" {}
driver "acme" {
  base = "native"
  bind "x" {
    phase "before_create" {
      attempts = 0
    }
  }
}
