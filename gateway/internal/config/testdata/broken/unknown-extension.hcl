driver "native" {}
driver "acme" {
  base = "native"
  bind "ipma" {}
}
