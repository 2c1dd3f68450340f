driver "a" {
  base   = "native"
  socket = "unix:///s"
}
driver "native" {}
