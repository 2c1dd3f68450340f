driver "native" {}
driver "acme" {
  base = "nativ"
}
