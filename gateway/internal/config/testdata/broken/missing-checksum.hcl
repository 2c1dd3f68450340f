extension "x" {
  command = "/bin/true"
}
driver "native" {}
