extension "x" {
  command  = "relative"
  checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
  limits {
    memory = "lots"
    cpu    = -1
  }
}
driver "native" {}
