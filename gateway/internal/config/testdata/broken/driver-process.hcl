driver "native" {
  checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
  user     = "somebody"

  limits {
    pids = 10
  }
}

driver "far" {
  command  = "/bin/sh"
  checksum = "0000000000000000000000000000000000000000000000000000000000000000"

  limits {
    cpu = -1
  }
}
