extension "x" {
  command = "relative"
}
driver "native" {
  bind "x" {}
}
