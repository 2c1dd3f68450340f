extension "x" {
  command  = "/bin/true"
  checksum = "md5:12"
}
driver "native" {}
