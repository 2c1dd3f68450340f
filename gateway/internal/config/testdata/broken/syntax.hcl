driver "native" {
  base = 
}
