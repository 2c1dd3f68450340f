extension "a" {
  command = "relative"
}
extension "a" {
  command = "/bin/true"
}
driver "native" {}
