extension "x" {
  command  = "/does/not/exist"
  checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
}
driver "native" {}
